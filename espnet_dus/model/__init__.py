"""The model: base LM, added layers, what is around them, and the losses."""
