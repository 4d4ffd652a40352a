import json
import os
import tempfile
from pathlib import Path

os.environ |= {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}

import lm_eval
from checks import URL, equal, report
from lm_eval.tasks import TaskManager

QUESTIONS = [("a", ["b", "z"], 0), ("c", ["y", "d"], 1), ("e", ["x", "f"], 0)]
"""The engine of the test likes small bytes: it is right on the first two and wrong on the third."""


def scores():
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "questions.jsonl")
        data.write_text("".join(json.dumps({"question": q, "choices": choices, "answer": a}) + "\n" for q, choices, a in QUESTIONS))
        task = {
            "task": "local_questions",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}],
        }
        arguments = {"model": "tiny", "base_url": f"{URL}/v1/completions", "num_concurrent": 1, "batch_size": 4}
        result = lm_eval.simple_evaluate(
            model="local-completions", model_args=arguments, tasks=[task], task_manager=TaskManager(include_defaults=False)
        )
        equal(round(result["results"]["local_questions"]["acc,none"], 3), 0.667)


report(scores=scores)
