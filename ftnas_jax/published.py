"""Architectures that were published, as genotype text for `Space.parse`."""

W_FTT_NET = """
normal_0=[('relu_conv_bn_3x3', 0, 2), ('relu_conv_bn_5x5', 0, 2), ('conv_1x1', 1, 3),
          ('dil_conv_3x3', 1, 3), ('sep_conv_3x3', 1, 4), ('sep_conv_3x3', 0, 4),
          ('max_pool_3x3', 2, 5), ('relu_conv_bn_5x5', 1, 5)],
reduce_1=[('skip_connect', 0, 2), ('relu_conv_bn_5x5', 1, 2), ('dil_conv_3x3', 2, 3),
          ('sep_conv_3x3', 0, 3), ('max_pool_3x3', 1, 4), ('conv_1x1', 3, 4),
          ('dil_conv_3x3', 4, 5), ('skip_connect', 2, 5)]
"""
"""Found under adSAF weight faults; the authors' repository has it as the config of its final
training. Its preprocessing is relu_conv_bn_3x3 at both strides, its BatchNorms are affine, and none
stands behind pools."""
