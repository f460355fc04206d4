"""Published settings as files for `pairmill train --config NAME`, such as `--config albef_base`.

Each says what the paper or its code did; what is not in it is this trainer's default. A figure quoted from
memory of a paper carries a dagger. Options on the command line win over the file.
"""
