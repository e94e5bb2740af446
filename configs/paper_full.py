"""The paper's tables at the paper's size: every training 100 epochs, every network at full width.

    python -m experiments.paper --table 5 --scale configs/paper_full.py --workdir runs/paper

It takes an accelerator: on two CPU cores an epoch of W-FTT-Net-20 alone takes 46 minutes (390 steps
of 7.1 s, results/README.md). It was not run.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Fields of a scale; the other one starts from here."""
    return ConfigDict(
        {
            "width": 1.0,  # channels of the baselines, as a share
            "channels": 20,  # of W-FTT-Net-20 and all found networks; twice that of W-FTT-Net-40
            "seeds": 1,  # trainings of each network
            "epochs": 100,
            "batch_size": 128,
            "p_m": "3e-4,1e-4,3e-5",  # tried in turn by Table 4's trainings; one is taken as it is
            "trial_epochs": 10,  # of each of several
            "norm_passes": "clean",  # as in configs/train_defaults.py, like the next
            "fraction_lengths": "batch",
            "calibrate": 0,  # as in python -m experiments.evaluate --help, like the next
            "recalibrate": 0,
            # Genotypes in place of searches, as in mibb=runs/mibb/genotype.json, by commas; none.
            "found": "",
            "search": {"epochs": 100, "channels": 20, "batch_size": 64},
            "chips": 64,  # of each network at each rate
            "images": 0,  # the first so many test images; 0 for all
            "data": {
                "name": "cifar10",
                "data_dir": "~/tensorflow_datasets",
                "cache_dir": "",
                "size": 0,
            },
        }
    )
