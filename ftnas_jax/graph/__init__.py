"""Any JAX function as a graph in which layers are found, quantized and made to fail."""
