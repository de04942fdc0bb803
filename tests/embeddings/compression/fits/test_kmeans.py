import torch

from dlrmctl.embeddings.compression.fits.kmeans import fit_centers, nearest


def test_the_nearest_center_is_the_nearest():
    generator = torch.Generator().manual_seed(0)
    rows, centers = torch.randn(3000, 5, generator=generator), torch.randn(100, 5, generator=generator)
    distances = torch.cdist(rows.double(), centers.double())
    found = distances[torch.arange(3000), nearest(rows, centers)]
    # Scores are float32: a center that is as near to 7 digits may be taken instead.
    assert torch.allclose(found, distances.amin(1), rtol=1e-5)


def test_k_means_finds_separate_clusters_by_any_seed():
    generator = torch.Generator().manual_seed(0)
    centers = 10 * torch.randn(40, 8, generator=generator)
    rows = centers[torch.randint(40, (4000,), generator=generator)] + 0.01 * torch.randn(4000, 8, generator=generator)
    for seed in range(3):
        found = fit_centers(rows, torch.ones(4000), 40, torch.Generator().manual_seed(seed), steps=25)
        assert float((rows - found[nearest(rows, found)]).square().sum(1).max()) < 0.01


def test_k_means_on_weighted_rows_is_k_means_on_repeated_rows():
    generator = torch.Generator().manual_seed(0)
    rows, counts = torch.randn(60, 3, generator=generator), torch.randint(1, 5, (60,), generator=generator)
    weighted = fit_centers(rows, counts.float(), 1, generator, steps=25)
    # Means of 150 float32 numbers of about 1.
    assert torch.allclose(weighted[0], rows.repeat_interleave(counts, 0).mean(0), atol=1e-5)


def test_as_many_centers_as_rows_are_the_rows():
    rows = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    centers = fit_centers(rows, torch.ones(30), 30, torch.Generator().manual_seed(0), steps=25)
    assert torch.equal(centers[nearest(rows, centers)], rows)


def test_threads_find_what_one_finds():
    generator = torch.Generator().manual_seed(0)
    rows, centers = torch.randn(10_001, 8, generator=generator), torch.randn(200, 8, generator=generator)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = nearest(rows, centers)
        torch.set_num_threads(3)
        assert torch.equal(nearest(rows, centers), one)
    finally:
        torch.set_num_threads(threads)
