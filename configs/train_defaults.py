"""Fields of a final training and the paper's values for them (§5.1); other configs start here."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Fault-tolerant training on CIFAR-10 under MiBB; the other configs say what differs."""
    return ConfigDict(
        {
            # resnet18, vgg16, mobilenet_v2, w_ftt_net, genotype:FILE or package.module:Name, with
            # options behind, as in "resnet18:width=0.25"; see ftnas_jax.models.
            "network": "resnet18",
            "seed": 0,
            "epochs": 100,
            "batch_size": 128,
            # A model and its rates, as in "stuck_at:p0=0.067,p1=0.013"; several joined by "+".
            "faults": "mibb:p_m=1e-4",
            "gradients": "straight_through",  # or masked, where a fault hits (§5.1)
            "curriculum_epochs": 0,  # over which the rates of faults grow linearly; 0 for none
            "norm_passes": "clean",  # that running statistics of BatchNorm average; or both
            "fraction_lengths": "batch",  # of features in faulty passes; or clean
            "rates": {  # the paper's rule for the rate of the one fault model (§5.2)
                "tried": "",  # in turn, as in "3e-4,1e-4,3e-5"; empty for the rate in `faults`
                "epochs": 10,  # after which the next one is tried, if
                "least_accuracy": 0.5,  # clean, on test images, is not exceeded
            },
            "test_every": 1,  # epochs; the last one is always tested
            "data": {
                "name": "cifar10",  # digits, or an image classification set of TFDS
                "data_dir": "~/tensorflow_datasets",
                "cache_dir": "",  # decoded images; empty for the user's cache folder
                "size": 0,  # side to resize to; 0 leaves images as they are
            },
            "augment": {"crop_padding": 4, "flip": True},
            "quantization": {
                "weight_bits": 8,
                "weight_encoding": "twos_complement",  # or sign_magnitude
                "feature_bits": 8,
            },
            "weights": {
                "learning_rate": 0.1,
                "drops": (0.4, 0.8),  # of all epochs; there the learning rate is divided by 10
                "momentum": 0.9,
                "weight_decay": 4e-5,
                "gradient_clip": 5.0,
                "alpha_l": 0.5,  # Eq. 13; 0 trains without faults, 1 on faulty passes alone
            },
            "checkpoint_minutes": 10.0,
        }
    )
