"""The model: base LM, added layers, the parts around them, and the losses."""
