"""The custom resources as users see them: models, reasons, and the generators of what is made from them.

`scale` holds the fields, `reasons` the words of conditions and Events, `crd` writes crds/ and `reference`
writes docs/crd-reference.md from both.
"""
