"""`gradwatch demo`: one real training that explodes, and the same training watched and clipped.

Nothing is injected. A recurrent network learns the documentation that CPython ships, at a learning rate that
is too high for it: sooner or later a step meets a cliff of the loss and the weights are gone.
"""
