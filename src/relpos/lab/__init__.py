"""Training, comparing, measuring and reporting: everything behind the command `relpos`.

Modules here import the extras (lightning, matplotlib, rich, typer); the rest of the library never imports them.
"""
