"""Fine-tuning of a language model on commonsense questions: accuracy per test set, and their mean."""

from __future__ import annotations

from typing import Any

from ham.data.commonsense import Commonsense
from ham.models.causal_lm import CausalLM
from pruning import Dense

from .base import Metrics, TaskFacts, refuse_options, task_for


@task_for(Commonsense)
class LanguageModeling(TaskFacts):
    """LoRA adapters of cfg.model on the examples of cfg.data; the Trainer of transformers trains them.

    The reported metric is the mean accuracy over the test sets after training. There is one evaluation, so
    that the last epoch's metric is also the best one's.
    """

    name = "language"
    reported = ("average", "average")
    trained_by = "finetune"
    stores_history = False
    demos = frozenset({"smollm", "tiny"})

    @classmethod
    def check(cls, cfg: Any) -> None:
        """Raise ValueError unless a dense language model is trained, with options that the Trainer has."""
        if not isinstance(cfg.model, CausalLM):
            raise ValueError("data=commonsense needs model=llama1b or llama3b: use an experiment lora_...")
        if not isinstance(cfg.sparsifier, Dense) or cfg.trains_factors:
            raise ValueError("LoRA matrices are trained dense: use sparsifier=dense, parameterization=plain")
        unused = {
            "optimizer.sam_rho": cfg.optimizer.sam_rho > 0,
            "optimizer.matched_decay": cfg.optimizer.matched_decay > 0,
            "optimizer.label_smoothing": cfg.optimizer.label_smoothing > 0,
            "compute.channels_last": cfg.compute.channels_last,
            "compute.compile": cfg.compute.compile,
            "compute.sync_bn": cfg.compute.sync_bn,
        }
        refuse_options(unused, "the fine-tuning of a language model")
        if cfg.data.load_best and cfg.data.val_set_size == 0:
            raise ValueError(
                "data.load_best=true needs held-out examples: set data.val_set_size, or data.load_best=false"
            )
        cfg.model.check(cfg.data.image_size)

    @classmethod
    def describe(cls, summary: Metrics) -> list[str]:
        """The accuracies after training, and before it where they were measured."""
        metrics, answers = summary["metrics"], summary["answers"]
        lines = []
        for task, score in (*answers.items(), ("average", None)):
            of = f" ({score['correct']} of {score['questions']})" if score else ""
            before = metrics.get(f"before_{task}")
            earlier = "" if before is None else f", {before:.2f} % before training"
            lines.append(f"{task:<14} {metrics[task]:.2f} %{of}{earlier}")
        return [*lines, f"adapter      of step {summary['checkpoint']['step']}"]
