"""mergekit's YAML files as Modelfiles: read with positions, translated, and written as a person would."""
