"""The three ways in which every test is put: with the picture, without it, with a wrong one.

`withheld` shows the mean picture (zeros after normalisation): what is right then comes from the text alone.
`shuffled` shows each caption the picture of another. A model that ignores pictures scores alike in all three.
"""

CONDITIONS = ("with_picture", "withheld", "shuffled")
