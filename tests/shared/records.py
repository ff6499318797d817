"""The metrics.json of a run, as the tests of table, report and comparison change it."""

TRAINED = {
    "stage": "nvae",
    "steps": 10,
    "seconds": 1.5,
    "fingerprint": "f" * 64,
    "seed": 0,
    "status": "finished",
    "model": "n" * 64,
    "commit": "c" * 40,
    "changed": False,
}
"""The record of a training, without settings and data."""

RECORD = {
    "experiment": "digits",
    "variant": "vaebm",
    "seed": 0,
    "metrics": {"FD-classifier": {"value": 40.0, "samples": 10000}, "AUROC-turned": {"value": 0.8, "samples": 297}},
    "without": {},
    "real": {"FD-classifier": {"value": 8.7, "samples": 297}},
    "extractor": {
        "kind": "classifier",
        "name": "classifier-0123",
        "weights": "0123",
        "features": 64,
        "torch-fidelity": "0.4.0",
    },
    "modes_by": None,
    "chain": {"steps": 10, "step_size": 0.04, "potential": "noise", "stretch": False},
    "data": "d" * 64,
    "users": False,
    "commit": ["c" * 40],
    "changed": False,
    "versions": {"torch": "2.13.0"},
    "models": {"nvae": "n" * 64},
    "training": {"nvae": TRAINED},
}
