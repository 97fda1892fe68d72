"""The 13 node classification data sets: their facts, and where their files are."""

from __future__ import annotations

from dataclasses import dataclass

_GITHUB = "https://raw.githubusercontent.com"
_SPLITS = f"{_GITHUB}/LUOyk1999/tunedGNN/main/medium_graph/data"
_PLANETOID = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")


# Of the files at these addresses. Those of wikics, amazon-ratings and roman-empire are not known. Copies of
# the Amazon and Coauthor files with the same arrays in other bytes are common: their content is checked.
SHA256 = {
    "ind.cora.allx": "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
    "ind.cora.ally": "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
    "ind.cora.graph": "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
    "ind.cora.test.index": "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875",
    "ind.cora.tx": "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
    "ind.cora.ty": "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
    "ind.cora.x": "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab",
    "ind.cora.y": "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1",
    "ind.citeseer.allx": "2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668",
    "ind.citeseer.ally": "f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95",
    "ind.citeseer.graph": "d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7",
    "ind.citeseer.test.index": "2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4",
    "ind.citeseer.tx": "539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21",
    "ind.citeseer.ty": "55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce",
    "ind.citeseer.x": "d20de19150741e555de0ed037195630fc194114ebc7fd72ced62810148aa22f6",
    "ind.citeseer.y": "8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924",
    "ind.pubmed.allx": "508e538e2abdccdd54c4d3e9f49d638b4af7107d85845f66ddea5a5152658b7e",
    "ind.pubmed.ally": "0c37bbe3b5014ec365e9d393cf4791925e5ed94fb194305d74f064a8d7b50f0e",
    "ind.pubmed.graph": "5b89f0036ca22909471f1e6558eb42fa06e0c730a577bde5b058b40638f81dc9",
    "ind.pubmed.test.index": "b101d421688bbaecbd82e8a18f1e282378d6830f3a37666f28ebc47f844341b5",
    "ind.pubmed.tx": "4eb5f5d0f30f26497eb0ac6ac9719d09c67e284f1ed0385c93f3ef27a671da3d",
    "ind.pubmed.ty": "ee2e0d4819d9fbcc403689c3bf2e49face401b605932f093bc58ab6461130fdd",
    "ind.pubmed.x": "fbe9cb5c47200d1b7769a26e579be3b7130b556831f9d850e77c4c74f2599b33",
    "ind.pubmed.y": "e6c807633307a07ed659249006536a147c7999c797f11a2560752990181b41b3",
    "minesweeper.npz": "e664c8dacf1e8ac466c2c09ed4b237bd2c5541f47a6eae9c6092cb87f16412b3",
    "squirrel_filtered.npz": "f06370ffb3116c5de8b7a600005400b2293c025e0ce2f6916d8201a825505ac7",
    "chameleon_filtered.npz": "bf46f07e1fb5249280447e5fe3100f3e82fc4b93ad1e13ffcfdec924b6ac0bb5",
    "amazon-computer_split.npz": "dff698aba1dd30b8bd7d1dca65c60b1f8d9027d950e07a23e86dcbf16c539f24",
    "amazon-photo_split.npz": "0609f6ab15ddabfe33a34f10d960d09499e634472f72104abb1f3be858127432",
    "coauthor-cs_split.npz": "b8c46a38d93b1f9d6b8b8ab944d870e8d44ccdde0639188681e0d38212480ec5",
    "coauthor-physics_split.npz": "2034eb90f5ff80eee0e371cc05b20690a16786fb085924b9166c83361fbbcb39",
}
"""Digests of raw files and of splits, by name."""


@dataclass(frozen=True)
class GraphSet:
    """Facts of one data set.

    Args:
        reader: the PyTorch Geometric class that reads it; "Filtered": PyG has none, graph_files.py reads it.
        key: the name of the data set in PyTorch Geometric.
        nodes: number of nodes.
        edges: number of undirected edges without self-loops.
        features: number of features per node.
        classes: number of classes.
        files: names of the raw files.
        url: the folder from which they are downloaded.
        metric: accuracy, or roc_auc of class 1.
        normalize: True to scale each node's features to sum 1, as in the paper's code base.
    """

    reader: str
    key: str
    nodes: int
    edges: int
    features: int
    classes: int
    files: tuple[str, ...]
    url: str
    metric: str = "accuracy"
    normalize: bool = False

    @property
    def has_complete_splits(self) -> bool:
        """True if every node is in one of the parts of each split in the files."""
        return self.reader in ("Filtered", "HeterophilousGraphDataset")


def _planetoid(key: str, *counts: int) -> GraphSet:
    files = tuple(f"ind.{key}.{part}" for part in _PLANETOID)
    return GraphSet("Planetoid", key, *counts, files, f"{_GITHUB}/kimiyoung/planetoid/master/data")


def _npz(reader: str, key: str, file: str, *counts: int) -> GraphSet:
    url = f"{_GITHUB}/shchur/gnn-benchmark/master/data/npz"
    return GraphSet(reader, key, *counts, (file,), url, normalize=True)


def _heterophilous(
    key: str, file: str, *counts: int, reader: str = "HeterophilousGraphDataset", metric: str = "accuracy"
) -> GraphSet:
    url = f"{_GITHUB}/yandex-research/heterophilous-graphs/main/data"
    return GraphSet(reader, key, *counts, (file,), url, metric)


# nodes, edges, features, classes: Tables 14 and 15; citeseer has 4,552 edges, the paper prints 4,522
SETS = {
    "cora": _planetoid("cora", 2708, 5278, 1433, 7),
    "citeseer": _planetoid("citeseer", 3327, 4552, 3703, 6),
    "pubmed": _planetoid("pubmed", 19717, 44324, 500, 3),
    "wikics": GraphSet(
        *("WikiCS", "", 11701, 216123, 300, 10, ("data.json",)),
        f"{_GITHUB}/pmernyei/wiki-cs-dataset/master/dataset",
    ),
    "coauthor-cs": _npz("Coauthor", "CS", "ms_academic_cs.npz", 18333, 81894, 6805, 15),
    "coauthor-physics": _npz("Coauthor", "Physics", "ms_academic_phy.npz", 34493, 247962, 8415, 5),
    "amazon-computer": _npz(
        "Amazon", "Computers", "amazon_electronics_computers.npz", 13752, 245861, 767, 10
    ),
    "amazon-photo": _npz("Amazon", "Photo", "amazon_electronics_photo.npz", 7650, 119081, 745, 8),
    "amazon-ratings": _heterophilous("amazon_ratings", "amazon_ratings.npz", 24492, 93050, 300, 5),
    "squirrel": _heterophilous("", "squirrel_filtered.npz", 2223, 46998, 2089, 5, reader="Filtered"),
    "chameleon": _heterophilous("", "chameleon_filtered.npz", 890, 8854, 2325, 5, reader="Filtered"),
    "minesweeper": _heterophilous("minesweeper", "minesweeper.npz", 10000, 39402, 7, 2, metric="roc_auc"),
    "roman-empire": _heterophilous("roman_empire", "roman_empire.npz", 22662, 32927, 300, 18),
}


def sources(name: str) -> dict[str, str]:
    """Path below the root -> URL, for every file that `name` needs."""
    facts = SETS[name]
    urls = {f"{name}/raw/{file}": f"{facts.url}/{file}" for file in facts.files}
    if facts.reader in ("Amazon", "Coauthor"):
        urls[f"splits/{name}_split.npz"] = f"{_SPLITS}/{name}_split.npz"
    return urls
