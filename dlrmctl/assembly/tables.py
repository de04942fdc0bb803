"""Chooses the tables of every sparse feature of the data, by the settings."""

from collections.abc import Sequence
from dataclasses import replace

from dlrmctl.data.schema import Schema, SparseFeature
from dlrmctl.data.source import Source
from dlrmctl.embeddings.choose import RatioError, Scheme, fit_ratio, num_parameters
from dlrmctl.embeddings.tables import FeatureTable
from dlrmctl.errors import UserError
from dlrmctl.settings.config import Config
from dlrmctl.settings.embeddings import EmbeddingSettings, changes_of_table, check_patterns

# A remainder table has a row for every collision, so "qr" has a smallest size.
_BEYOND = "--embedding hash has no lower bound; a lower --qr-threshold compresses smaller tables too"
_NONE_IS_LARGE = "a lower --qr-threshold, such as 200, compresses smaller tables too"


def feature_tables(config: Config, schema: Schema) -> list[FeatureTable]:
    """Returns the tables of every sparse feature, in their order.

    Tables that have grown since an earlier day are chosen by the rows of the first day.

    Raises:
        UserError: if a section matches no table, its settings contradict, or a ratio is out of reach.
    """
    grown, of_table = config.grown, dict[str, list[SparseFeature]]()
    for feature in schema.sparse:
        of_table.setdefault(feature.table or feature.name, []).append(feature)
    names = list(of_table)
    features = [
        (name, grown.get(name, (some[0].rows,))[0], max(feature.max_ids for feature in some))
        for name, some in of_table.items()
    ]
    check_patterns(config.tables, names)
    changes = [changes_of_table(config.tables, name, names) for name in names]
    each = [replace(config.embeddings, **change) for change in changes]
    schemes = [
        Scheme(
            embedding=settings.embedding,
            collisions=settings.collisions,
            operation=settings.operation,
            qr_layout=settings.qr_layout,
            ways=settings.ways,
            head_share=settings.head_share,
            tail=settings.tail,
            qr_threshold=settings.qr_threshold,
            headroom=settings.crt_headroom,
        )
        for settings in each
    ]
    ratio, dim = config.embeddings.compress_ratio, config.embeddings.dim
    try:
        if ratio is None:
            tables = [scheme.table(feature) for scheme, feature in zip(schemes, features, strict=True)]
            num_parameters(tables, dim)  # raises for widths that no kernel has
        else:
            given = ["collisions" in change for change in changes]
            tables = fit_ratio(features, schemes, given, ratio=ratio, dim=dim)
        by_name = dict(zip(names, tables, strict=True))
        return [_of_feature(by_name[f.table or f.name], f, grown.get(f.table or f.name, ())) for f in schema.sparse]
    except RatioError as problem:
        hint = _BEYOND if problem.best > 1 else _NONE_IS_LARGE
        raise UserError(f"embeddings.compress_ratio: {problem}", hint) from None
    except ValueError as problem:
        raise UserError(str(problem), "see [embeddings] and [embeddings.tables] of the settings") from None


def _of_feature(table: FeatureTable, feature: SparseFeature, before: tuple[int, ...]) -> FeatureTable:
    """The tables of a feature, which may be shared, with the rows of earlier days."""
    return replace(
        table,
        name=feature.name,
        max_ids=feature.max_ids,
        rows=feature.rows,
        before=before,
        table=feature.table,
        most_ids=1 if feature.table is None else table.max_ids,
        weighted=feature.weighted,
    )


def unsorted_heads(tables: Sequence[FeatureTable], source: Source) -> list[str]:
    """Returns a warning if a "head" has ids that are not known to be sorted by frequency."""
    is_sorted = source.features.sorted_by_frequency
    heads = [table.name for table in tables if table.embedding == "head" and not is_sorted(table.name)]
    if not heads:
        return []
    which = heads[0] if len(heads) == 1 else f"{heads[0]} and {len(heads) - 1} more"
    return [
        f"warning: the ids of {which} are not sorted by frequency, so the head of the table is for arbitrary ids; "
        "`dlrmctl prepare` with a vocabulary sorts them"
    ]


def summary(tables: Sequence[FeatureTable], settings: EmbeddingSettings) -> str:
    """Returns one line: the tables, and how much smaller they are than full ones, or why none is smaller."""
    dim, threshold = settings.dim, settings.qr_threshold
    tables = list({table.table or table.name: table for table in tables}.values())  # of shared ones, one
    full, kept = sum(table.rows * dim for table in tables), num_parameters(tables, dim)
    if full == kept and settings.embedding != "full" and all(table.rows < threshold for table in tables):
        return f"{full:,} weights of embeddings, all tables full: none has {threshold:,} rows (--qr-threshold)"
    counts: dict[str, int] = {}
    for table in tables:
        way = table.embedding if table.combination is None else f"{table.embedding} {table.combination}"
        counts[way] = counts.get(way, 0) + 1
    kinds = ", ".join(f"{count} {way}" for way, count in counts.items())
    return f"{full:,} weights of embeddings in {kept:,}, {full / kept:.2f}x smaller: {kinds}"
