r"""Train a residual text classifier on your texts.

    python -m tasks.text.classify_text --data ../shared/data/trec --name TREC-6 --seeds 0 1 2 3 4 \
        --record

reached 91.8 +- 0.4 % (TF-IDF without NB's weights 89.4, the net alone 90.8 %), in a minute of
training per seed on two cores of a Xeon with bfloat16; with --all-rows 92.7 +- 0.5 (90.2) %.

Every text is answered by the net and by NB-SVM on TF-IDF, which on small sets is often the
better of the two, each with the share that does best on the validation rows; --no-tfidf leaves the
net alone. Without a validation split, 10 % of the training rows are held out for it; the test split
is read once, at the end. Settings follow the data: n-grams of words and adversarial steps for short
texts, fewer epochs of long ones, more of few; what was chosen is said. For opinions see
tasks.text.analyze_sentiment.
"""

from dataclasses import dataclass

from resbackbones.text import ResidualForSequenceClassification as Model
from tasks._recipe import Task
from tasks._using import run
from tasks.text._classification import GPU, TextClassification, experiment, items
from tasks.text._lines import explain, read


@dataclass(frozen=True, kw_only=True)
class Config(TextClassification):
    """The fields of all recipes of text classifiers."""


USE = """
import transformers
import resbackbones.text

classify = transformers.pipeline("text-classification", model="{model}")
print(classify(["a text of yours", "and another"], top_k=3))
"""
TASK = Task(
    *("classify_text", "text", Config, experiment, items, (Model,), read, USE, GPU),
    predicted=explain,
)

if __name__ == "__main__":
    run(TASK)
