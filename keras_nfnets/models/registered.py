"""Registration of the networks under our names and timm's."""

from keras_nfnets import pretrained
from keras_nfnets.models import nf_regnet, nf_resnet, nfnet

FAMILIES = (nf_resnet, nf_regnet, nfnet)

_AS_TIMM = {"convention": "timm", "stochastic_depth_rate": 0.0, "drop_rate": 0.0}

# name -> constructor and options. timm's `dm_nfnet_f0` to `f6` are the authors'
# networks; its `nfnet_f0` to `f7` were never published with weights.
_OF_TIMM_BY_NAME = {
    **{f"dm_nfnet_f{n}": (getattr(nfnet, f"NFNetF{n}"), {}) for n in range(7)},
    **{
        f"nfnet_f{n}": (
            getattr(nfnet, f"NFNetF{n}"),
            {**_AS_TIMM, "activation": "gelu_exact"},
        )
        for n in range(8)
    },
    "nfnet_l0": (nfnet.NFNetL0, {}),
    **{f"eca_nfnet_l{n}": (getattr(nfnet, f"ECANFNetL{n}"), {}) for n in range(4)},
    "test_nfnet": (nfnet.NFNetTest, {}),
    **{
        f"nf_regnet_b{n}": (getattr(nf_regnet, f"NFRegNetB{n}"), _AS_TIMM)
        for n in range(6)
    },
    **{
        f"nf_resnet{depth}": (getattr(nf_resnet, f"NFResNet{depth}"), _AS_TIMM)
        for depth in (26, 50, 101)
    },
    **{
        f"nf_{kind}resnet{depth}": (
            getattr(nf_resnet, f"NF{kind.upper()}ResNet{depth}"),
            {},
        )
        for kind in ("se", "eca")
        for depth in (26, 50, 101)
    },
}

for _family in FAMILIES:
    for _name in _family.VARIANTS:
        pretrained.register(_name, getattr(_family, _name), {})
for _name, (_constructor, _options) in _OF_TIMM_BY_NAME.items():
    pretrained.register(_name, _constructor, _options)
