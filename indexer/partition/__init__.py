"""Fuzzy c-means partition of the embedding space: where a vector is filed, which lists a query probes.

The fit starts from k-means. Where the sample is small it is scikit-fuzzy's ``cmeans``; else, and for
everything past the fit, the same memberships are evaluated in blocks of float32, from logarithms.

Notes
-----
**Which fuzzifier.** Fuzzy c-means has a fixed point where it has learnt nothing: every centroid in
the mean of the data, every membership 1/c. Let z be the vectors after centring, each scaled to
length 1, and λ the top eigenvalue of the mean of z zᵀ. Centroids moved off the mean by δ (with
u ∝ d^(-2/(m-1)) expanded to first order in δ) come back from one iteration as
2m/(m-1) · (mean of z zᵀ) δ. So the fixed point attracts exactly if 2mλ/(m-1) < 1, that is if

    m > 1 / (1 - 2λ),

and never if λ ≥ 1/2. This is the rule of [1]_; an m at or above it is refused.

It says when *all* centroids fall together. Two neighbouring centroids do so earlier: the same
argument holds inside a cluster, with z taken around the cluster's own mean. On 11 715 MRI slices
(frozen ImageNet features, d = 1280, c = 108) the rule gives 1.48 for the whole and 1.24 inside (10 %
quantile of the k-means clusters); at m = 1.12, 1.15, 1.20 and 1.25 there were 0, 13, 58 and 94
centroids that coincided with another. On many well separated clusters it is the other way round (1.03
and 1.2). Hence m = 1 + (limit - 1) / 3 with the lower of the two limits: on those slices and on Gaussian
mixtures a quarter to a half of the way scanned least at equal recall.

**How a query finds its lists.** Many small lists scan least, but each is one more centroid to compare
with. So a graph (HNSW [4]_) over the centroids names the nearest, of which the memberships then choose.
With eight times √n lists that took 0.45 of the distance computations of the best tuned k-means inverted
file on real slices; memberships instead of a fixed number of probes add little (``python -m
benchmarks.index``).

**A second list** for a border vector is chosen as in SOAR [3]_: not the next nearest centroid, but one
whose residual is as orthogonal as can be to the residual of the first, since a query that misses the
vector in the first list is far along that one. Gated by membership, it pays on features that are hard to
cluster, and is left out where it saves too little (:meth:`Partition.calibrate` measures it).

References
----------
.. [1] J. Yu, Q. Cheng, H. Huang, "Analysis of the weighting exponent in the FCM", IEEE Transactions
       on Systems, Man, and Cybernetics, Part B 34(1), 2004, 634-639. doi:10.1109/TSMCB.2003.810951
.. [2] J. C. Bezdek, "Pattern Recognition with Fuzzy Objective Function Algorithms", Plenum, 1981
       (memberships, partition coefficient).
.. [3] P. Sun, D. Simcha, D. Dopson, R. Guo, S. Kumar, "SOAR: Improved Indexing for Approximate Nearest
       Neighbor Search", NeurIPS 2023. arXiv:2404.00774
.. [4] Y. A. Malkov, D. A. Yashunin, "Efficient and robust approximate nearest neighbor search using
       Hierarchical Navigable Small World graphs", IEEE TPAMI 42(4), 2020, 824-836.
"""

from indexer.partition.fuzzifier import fuzzifier_limit
from indexer.partition.partition import POINTS_PER_LIST, RECALL, Partition, lists_for_count
from indexer.partition.probing import Probing

__all__ = ["POINTS_PER_LIST", "RECALL", "Partition", "Probing", "fuzzifier_limit", "lists_for_count"]
