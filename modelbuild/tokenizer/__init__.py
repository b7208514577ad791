"""Tokenizers, read without the libraries that run them: vocabularies, their union, and the files that say so."""
