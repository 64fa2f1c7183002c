// CuPy's headers include this; what they use of it is in the standard library.
