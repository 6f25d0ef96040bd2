"""The Long Range Arena: its synthetic tasks made offline by their exact rules, and readers of its released files."""
