"""Making a quantised checkpoint: rounding, AWQ and GPTQ, a layer at a time on our own forward pass in NumPy.

`quantize.quantize` does it all. Activations, scales and errors are float32; matrices are multiplied by NumPy's BLAS.
"""
