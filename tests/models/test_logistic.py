"""Logistic regression: the buckets of dense features, and the sum of weights."""

import math

import torch

from dlrmctl.models.inputs import StandardInputs
from dlrmctl.models.logistic import BucketLogits, Buckets, LinearLogits, LogisticNetwork


def test_each_value_is_in_one_bucket_and_a_missing_one_in_its_own():
    buckets = Buckets([[1.0, 2.0], [0.5], []])
    nan, inf = math.nan, math.inf
    dense_BI = torch.tensor([[nan, nan, nan], [-inf, 0.4, 7.0], [1.0, 0.5, -7.0], [1.5, 9.0, 0.0], [inf, inf, inf]])
    assert buckets.num_columns == 4 + 3 + 2
    assert buckets(dense_BI).tolist() == [[0, 4, 7], [1, 5, 8], [2, 6, 8], [2, 6, 8], [3, 6, 8]]


def test_data_without_dense_features_has_an_intercept():
    for dense in (BucketLogits(Buckets([])), LinearLogits(StandardInputs([], [], [], [], []))):
        network = LogisticNetwork(dense)
        torch.nn.init.constant_(network.intercept, 2.0)
        weights_BF1 = torch.tensor([[[1.0], [2.0]], [[0.0], [-1.0]]])
        assert network(torch.empty(2, 0), weights_BF1).tolist() == [5.0, 1.0]
