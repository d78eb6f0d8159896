"""The command line, a verb a file; a new verb is a new file here and a line in `VERBS`."""

VERBS = {
    "demo": "The whole workflow on synthetic people",
    "data": "Import, list, check and show data sets",
    "experts": "Who can find body parts, and on what terms",
    "ground": "Part pseudo-labels for a data set",
    "masks": "What part pseudo-labels are worth, and those of others",
    "models": "Checkpoints of other programs as models, and what models there are",
    "train": "Learn prompts and image encoder on source domains",
    "evaluate": "Recognition on target domains, or of features from elsewhere",
    "embed": "Features of a folder's or a data set's images",
    "search": "The images most like a query",
    "export": "A model as ONNX, TorchScript or safetensors",
    "recipes": "The settings that are shipped, and what differs in them",
    "run": "A recipe from data to numbers",
    "compare": "What was reached here, beside what was published",
    "promote": "The best model by held-out sources as champion in MLflow's registry",
    "tune": "Search settings on held-out source domains",
    "submit": "Run a verb on a Ray cluster",
    "jobs": "What runs there, what it says, and its runs in MLflow",
    "doctor": "Whether machines, store and MLflow are ready, before it costs something",
    "store": "What artifacts exist, and which can go",
    "ui": "Browse the results in MLflow",
}
"""Verb -> what it does. It is the click command `VERB_verb` in workflows/verbs/VERB.py."""
