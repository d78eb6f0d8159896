"""The verbs of the command line. A new verb is a new file here and a line in `VERBS`."""

VERBS = {
    "demo": "Run the whole workflow on synthetic people",
    "data": "Import, list, check and show data sets",
    "experts": "List the grounding models and their licences",
    "ground": "Create part pseudo-labels for a data set",
    "masks": "Report on, refine, import and export part pseudo-labels",
    "models": "Import, list and show models; log one to MLflow, push one to the hub",
    "train": "Train prompts and image encoder on source domains",
    "evaluate": "Evaluate a model or a file of features on target domains",
    "calibrate": "Learn what a model's similarities mean, as probabilities and thresholds",
    "embed": "Compute the features of the images of a folder or a data set",
    "search": "Find the images most similar to a query",
    "same": "Tell whether two images show the same person",
    "serve": "Serve a model over HTTP, with a page for searching",
    "export": "Export a model as ONNX, TorchScript or safetensors",
    "recipes": "List the shipped recipes and the settings in which they differ",
    "run": "Run a recipe from data to metrics",
    "compare": "Compare results with published ones, or two runs with each other",
    "promote": "Register the best model on held-out sources as champion in MLflow",
    "tune": "Search for settings on held-out source domains",
    "submit": "Run a verb as a job on a Ray cluster",
    "jobs": "List, show and stop the jobs of a Ray cluster",
    "doctor": "Check machines, store and MLflow before expensive work",
    "store": "List artifacts and delete unused ones",
    "ui": "Browse the results in MLflow",
}
"""Verb -> description. The click command of a verb is `VERB_verb` in workflows/verbs/VERB.py."""
