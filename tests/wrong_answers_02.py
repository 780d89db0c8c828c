"""Wrong answers to the exercises of notebook 02, each a change of the solution: text, replacement, words it meets."""

WRONG = {
    "text_caption": [
        ('" , ".join("*" * n)', '"*"', "has 1 stars"),
        ('" . "', '" ."', "the spaces are not"),
        ('" , ".join', '" ".join', "a comma stands between"),
    ],
    "turned": [
        ("[[cos, sin], [-sin, cos]]", "[[cos, -sin], [sin, cos]]", "turns counter-clockwise"),
        ("np.radians(angle)", "angle", "turned by 90 degrees"),
        ("[[-1, -1], [1, -1], [1, 1], [-1, 1]]", "[[0, 0], [2, 0], [2, 2], [0, 2]]", "is the middle of the box"),
    ],
    "used": [
        ("<", "<=", "use <, not <="),
        ("<", ">=", "slots that are empty"),
        ("n_lines[:, None]", "n_lines", "the shape (3,)"),
    ],
    "mean_over_places": [
        ("(dy, dx)", "(dx, dy)", "dx moves down here"),
        ("np.mean", "np.sum", "the sum of the moved pictures"),
        ("(dy, dx)", "(-dy, -dx)", "two pixels to the right"),
    ],
    "masked": [
        ("hint == 1", "hint == 0", "the wrong way round"),
        ("-1.0", "0.0", "in a hole it is not -1"),
        ('if mode == "edit" else np.ones_like(hint, dtype=bool)', "", "in generation it must be -1"),
        (
            "return np.where(hidden, -1.0, picture)",
            "picture[np.broadcast_to(hidden, picture.shape)] = -1; return picture",
            "work on a copy",
        ),
    ],
    "own_item": [
        (', "img_caption": caption', "", "'img_caption' is missing"),
        ("max_lines=2", "max_lines=3", "it has 3 line slots"),
        ("picture.shape[1:]", "picture.shape[:0:-1]", "height first"),
        ('"img": picture', '"img": picture * 2', "validate says"),
    ],
}
