"""The logarithmic number system in which weights can live: formats, codecs, packing."""
