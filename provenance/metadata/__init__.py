"""Writes the facts of a picture as metadata that others read: XMP (IPTC, TC260, rights) and the texts of Stable Diffusion web UIs.

Everything here is written before the signature, which then covers it. Reads nothing: readers are beside this folder.
"""
