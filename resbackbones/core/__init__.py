"""The residual core, in torch alone: data at the bottom, then what it becomes.

Its files in the order they rest on each other: layers, branches, spec; context, ops, blocks,
backbone, zoo; heads, diagnose.
"""
