"""The scales below the paper's whose runs become records: `+demo=<name>`, see configs/demo."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Where the results of a scale go, and what they are of.

    Args:
        folder: folder of the records, below results/.
        prefix: prefix of the files of its tables and figures.
        summary: summary of the scale, in a few words.
        data: data of training and test.
        caveat: advice for reading its numbers.
        models: row of the paper's Table 5, a file of configs/base -> the network.
    """

    folder: str
    prefix: str
    summary: str
    data: str
    caveat: str
    models: dict[str, str]


_RESNET = "a ResNet18 with a quarter of the channels"
SCALES = {
    "digits": Scale(
        folder="demo",
        prefix="demo_",
        summary="8x8 digits",
        data="scikit-learn's 8x8 digits (1,437 training and 360 test images)",
        caveat="Differences of a few tenths are single images: these numbers do not rank the methods and "
        "cannot be compared with the paper's. A cell near 10 % is at chance level: the training loss of its "
        "runs ended at ln 10.",
        models={
            "imagenet_rn50": "a narrow ResNet50 with one bottleneck per stage",
            "cifar100_rn18": "a narrow ResNet18 with one block per stage",
            "imagenet_deit": "a DeiT of 4 blocks of width 64",
        },
    ),
    "cifar16": Scale(
        folder="cifar16",
        prefix="cifar16_",
        summary="CIFAR-100 at 16 px",
        data="CIFAR-100 at 16x16 pixels (20,000 training and 10,000 test images)",
        caveat="These numbers cannot be compared with the paper's.",
        models={
            "imagenet_rn50": _RESNET,
            "cifar100_rn18": _RESNET,
            "imagenet_deit": "a DeiT of 4 blocks of width 64",
        },
    ),
    "smollm": Scale(
        folder="smollm",
        prefix="smollm_",
        summary="SmolLM2-135M",
        data="1,600 training examples of four tasks, and 100 questions of each of seven test sets",
        caveat="A question is worth 1 % of a task's accuracy and 0.14 % of the average; these numbers cannot "
        "be compared with the paper's.",
        models=dict.fromkeys(("lora_llama1b", "lora_llama3b"), "SmolLM2-135M with LoRA of rank 32"),
    ),
    "epochs20": Scale(
        folder="epochs20",
        prefix="epochs20_",
        summary="20 epochs",
        data="all graphs of the set",
        caveat="The paper trains for 30 (ogbg-code2), 100 or 400 (ogbg-ppa) epochs, with a schedule of that "
        "length; these numbers cannot be compared with the paper's.",
        models=dict.fromkeys(
            (f"graph/ogbg_{name}" for name in ("ppa", "molpcba", "molhiv", "code2")), "the paper's GCN+"
        ),
    ),
}

FOLDERS = ("runs", *(scale.folder for scale in SCALES.values()))
"""The folders of records below results/, that of the paper's setting first."""


def file_name(name: str, demo: str) -> str:
    """Name of the file of a table or figure at a scale, "" for the paper's."""
    return f"{SCALES[demo].prefix}{name}" if demo else name


def scaled_down(demo: str) -> str:
    """The sentence that marks what is not the paper's setting."""
    return f"Scaled down to {SCALES[demo].summary}, not the paper's setting"
