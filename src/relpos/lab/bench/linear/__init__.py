"""`relpos bench linear`: kernelised attention with encodings, against softmax and against the literal algorithm."""
