"""Cores into one seamless result: the ledger, the pyramid, blending and the preview."""
