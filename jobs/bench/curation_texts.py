"""What the planted table says of pictures: captions of photographs that packages carry, and alt texts in
several languages, as people write them."""

from __future__ import annotations

#: (package, file in it) -> three captions; two teach, the third is judged
PHOTOGRAPHS: dict[tuple[str, str], tuple[str, str, str]] = {
    ("skimage", "data/coffee.png"): (
        "a cup of coffee on a red saucer",
        "espresso in a cup with a spoon on a wooden table",
        "a cup of espresso with a spoon on a saucer",
    ),
    ("skimage", "data/camera.png"): (
        "a man in a coat with a camera on a tripod",
        "photographer looking through a camera in a field",
        "a photographer with his camera on a tripod",
    ),
    ("skimage", "data/clock_motion.png"): (
        "a blurred clock on a grey wall",
        "clock face blurred by motion",
        "a clock blurred by motion, grey",
    ),
    ("skimage", "data/astronaut.png"): (
        "a smiling astronaut in an orange suit",
        "woman in a space suit before a flag and a shuttle",
        "a smiling woman astronaut in a space suit",
    ),
    ("skimage", "data/motorcycle_left.png"): (
        "a red motorcycle in a garage",
        "motorcycle parked beside a workbench",
        "a red motorcycle parked in a garage",
    ),
    ("skimage", "data/hubble_deep_field.jpg"): (
        "many galaxies in the dark of deep space",
        "stars and galaxies seen by a telescope",
        "galaxies and stars in deep space",
    ),
    ("skimage", "data/moon.png"): (
        "craters on the surface of the moon",
        "the grey moon from close by",
        "grey surface of the moon with craters",
    ),
    ("skimage", "data/grass.png"): (
        "grass seen from above",
        "a lawn of dry grass and leaves",
        "dry grass and leaves from above",
    ),
    ("skimage", "data/gravel.png"): (
        "small stones of a gravel path",
        "gravel, many little stones",
        "gravel path of little stones",
    ),
    ("skimage", "data/brick.png"): (
        "a wall of bricks",
        "pavement of narrow bricks",
        "bricks of a wall or a pavement",
    ),
    ("skimage", "data/retina.jpg"): (
        "the retina of an eye with its vessels",
        "red fundus of a human eye",
        "vessels in the retina of a human eye",
    ),
    ("skimage", "data/ihc.png"): (
        "stained tissue under a microscope",
        "brown and blue cells of a tissue sample",
        "tissue sample with brown stained cells",
    ),
    ("skimage", "data/cell.png"): (
        "a single cell, bright on dark",
        "a round cell in a hologram",
        "a single round cell on dark ground",
    ),
    ("skimage", "data/rocket.jpg"): (
        "a rocket on its launch pad at night",
        "white rocket between towers, lit by lamps",
        "a white rocket at night on the launch pad",
    ),
    ("skimage", "data/horse.png"): (
        "the black silhouette of a horse",
        "a horse, standing, in black",
        "silhouette of a standing horse",
    ),
    ("skimage", "data/chelsea.png"): (
        "a tabby cat looking at the camera",
        "face of a brown cat with green eyes",
        "a tabby cat with green eyes",
    ),
    ("skimage", "data/coins.png"): (
        "old coins in rows",
        "ancient greek coins on a dark board",
        "rows of ancient coins",
    ),
    ("skimage", "data/page.png"): (
        "a page of printed text about segmentation",
        "printed text in grey, part of a page",
        "part of a printed page of text",
    ),
    ("skimage", "data/text.png"): (
        "handwritten formulas on paper",
        "blurred handwriting with formulas",
        "formulas in handwriting",
    ),
    ("skimage", "data/color.png"): (
        "a colour wheel of all hues on black",
        "disc with the colours of the rainbow",
        "a disc of all hues on black",
    ),
    ("skimage", "data/logo.png"): (
        "a round logo of a snake in green and orange",
        "logo with a green and orange snake",
        "round green and orange logo",
    ),
    ("sklearn", "datasets/images/flower.jpg"): (
        "an orange dahlia flower before dark leaves",
        "orange flower in bloom",
        "a blooming orange dahlia",
    ),
    ("sklearn", "datasets/images/china.jpg"): (
        "a pagoda of a chinese palace above trees",
        "chinese temple with a curved roof by a lake",
        "a chinese pagoda with a curved roof",
    ),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"): (
        "an officer of the navy in uniform before a flag",
        "portrait of a woman in navy uniform with a cap",
        "a woman officer in navy uniform",
    ),
}

#: alt texts by language (ISO 639-1)
SENTENCES: dict[str, tuple[str, ...]] = {
    "en": (
        "An old wooden boat lies on the beach in the evening sun",
        "Two children are playing with a dog in the garden",
        "How to clean your kitchen windows without leaving stains",
        "The mayor opens the new library in the city centre",
        "Our hotel has a large swimming pool with a view of the mountains",
        "Fresh vegetables at the market on a Saturday morning",
        "Women's winter jacket with a warm hood, available in three sizes",
        "The team celebrates after winning the final match of the season",
        "A narrow street between old houses with flowers in the windows",
        "She wears a red dress and stands in front of the church",
    ),
    "de": (
        "Ein altes Holzboot liegt abends am Strand in der Sonne",
        "Zwei Kinder spielen mit einem Hund im Garten",
        "So putzen Sie Ihre Küchenfenster ohne Streifen",
        "Die Bürgermeisterin eröffnet die neue Bücherei in der Innenstadt",
        "Unser Hotel hat ein großes Schwimmbad mit Blick auf die Berge",
        "Frisches Gemüse auf dem Markt am Samstagmorgen",
    ),
    "fr": (
        "Un vieux bateau en bois sur la plage au soleil du soir",
        "Deux enfants jouent avec un chien dans le jardin",
        "Comment nettoyer les fenêtres de votre cuisine sans laisser de traces",
        "La maire inaugure la nouvelle bibliothèque du centre-ville",
        "Notre hôtel possède une grande piscine avec vue sur les montagnes",
        "Des légumes frais au marché le samedi matin",
    ),
    "es": (
        "Un viejo barco de madera en la playa bajo el sol de la tarde",
        "Dos niños juegan con un perro en el jardín",
        "Cómo limpiar las ventanas de la cocina sin dejar manchas",
        "La alcaldesa inaugura la nueva biblioteca en el centro de la ciudad",
        "Nuestro hotel tiene una gran piscina con vistas a las montañas",
        "Verduras frescas en el mercado el sábado por la mañana",
    ),
    "ru": (
        "Старая деревянная лодка лежит на пляже под вечерним солнцем",
        "Двое детей играют с собакой в саду",
        "Как помыть окна на кухне без разводов",
        "В нашем отеле есть большой бассейн с видом на горы",
    ),
    "ja": (
        "夕日に照らされた砂浜に古い木の船があります",
        "二人の子供が庭で犬と遊んでいます",
        "台所の窓をきれいに掃除する方法",
        "当ホテルには山の景色を望む大きなプールがあります",
    ),
}

#: alt texts of two to four words
SHORT: dict[str, tuple[str, ...]] = {
    "en": (
        "red sports car", "wedding cake", "old house by the sea", "boy with a kite", "winter coat",
        "snowy road", "the blue door", "cup of tea", "company logo", "contact us", "our team", "front view",
    ),
    "de": ("roter Sportwagen", "Haus am Meer", "Junge mit Drachen", "blaue Tür", "unser Team"),
    "fr": ("voiture de sport rouge", "gâteau de mariage", "maison au bord de la mer", "porte bleue"),
    "es": ("coche deportivo rojo", "tarta de boda", "casa junto al mar", "nuestro equipo"),
    "ru": ("красная машина", "дом у моря", "наша команда"),
    "ja": ("赤いスポーツカー", "海辺の家", "お問い合わせ"),
}  # fmt: skip
