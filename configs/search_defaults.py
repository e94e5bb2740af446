"""Fields of a search and the paper's values for them (§5.1); the other configs start from here."""

from ml_collections import ConfigDict

from ftnas_jax.space import PRIMITIVES


def get_config() -> ConfigDict:
    """FTT-NAS on CIFAR-10 under MiBB; see `mibb.py` and `adsaf.py` for what differs."""
    return ConfigDict(
        {
            "seed": 0,
            "epochs": 100,
            "batch_size": 64,
            # A model and its rates, as in "stuck_at:p0=0.067,p1=0.013"; several joined by "+".
            "faults": "mibb:p_m=1e-4",
            "gradients": "straight_through",  # or masked, where a fault hits (§5.1)
            "data": {
                "name": "cifar10",  # digits, or an image classification set of TFDS
                "data_dir": "~/tensorflow_datasets",
                "cache_dir": "",  # decoded images; empty for the user's cache folder
                "size": 0,  # side to resize to; 0 leaves images as they are
                "train_fraction": 0.8,  # for the shared weights; the rest is for the controller
            },
            "augment": {"crop_padding": 4, "flip": True},
            "space": {
                "nodes": 6,  # B
                "primitives": PRIMITIVES,  # operations, any of the 11
            },
            "network": {
                "channels": 20,
                "cells": 8,
                "reductions": (2, 5),  # places of reduction cells, from 0
                "preprocess": "relu_conv_bn_1x1",
                "preprocess_stride2": "skip_connect",  # a factorized reduction
                "batch_norm": "batch",  # or running
                "affine": False,
                "pool_norm": True,
                "dropout": 0.1,
            },
            "quantization": {
                "weight_bits": 8,
                "weight_encoding": "twos_complement",  # or sign_magnitude
                "feature_bits": 8,
            },
            "weights": {
                "learning_rate": 0.05,
                "momentum": 0.9,
                "weight_decay": 1e-4,
                "gradient_clip": 5.0,
                "alpha_l": 0.5,  # Eq. 13; 0 is FT-NAS
            },
            "controller": {
                "hidden": 100,
                "temperature": 5.0,
                "learning_rate": 1e-3,
                "baseline_decay": 0.99,
                "entropy_weight": 0.01,
                "alpha_r": 0.5,  # Eq. 12
            },
            # At the end: architectures from the controller and random ones, scored alike.
            "candidates": {
                "sampled": 50,
                "random": 50,
                "genotypes": "",  # a text file of more, or another run's genotype.json
                "batches": 16,
                "top": 5,
            },
            "checkpoint_minutes": 10.0,
        }
    )
