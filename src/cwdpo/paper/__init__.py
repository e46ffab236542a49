"""The paper's tables, figures and claims, remade by `cwdpo paper`. Nothing imports this room but that command."""
