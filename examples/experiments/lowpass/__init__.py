"""What `attention_lowpass.py` is made of: blocks watched, the Gaussian filter, spectra of tokens, their redundancy."""
