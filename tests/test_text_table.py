"""The one formatter of tables."""

import pytest

from anytext_lcm.figures.text_table import text_table

HEAD = ("part", "layers", "size")
ROWS = [("UNet", 1240, "51.0 MB"), ("all of it", 9, "4.9 MB")]


def test_columns_are_as_wide_as_they_need_to_be_and_whole_numbers_stand_right():
    assert text_table(HEAD, ROWS).splitlines() == [
        "part       layers  size",
        "--------------------------",
        "UNet        1,240  51.0 MB",
        "all of it       9  4.9 MB",
    ]


def test_alignment_can_be_chosen_and_the_last_letter_holds_for_the_rest():
    lines = text_table(HEAD, iter(ROWS), align="lr").splitlines()
    assert lines[0] == "part       layers     size" and lines[3] == "all of it       9   4.9 MB"
    assert text_table(HEAD, ROWS, align="rlr").splitlines()[2] == "     UNet  1,240   51.0 MB"


def test_markdown():
    assert text_table(HEAD, ROWS, markdown=True, align="lr").splitlines() == [
        "| part | layers | size |",
        "| --- | ---: | ---: |",
        "| UNet | 1,240 | 51.0 MB |",
        "| all of it | 9 | 4.9 MB |",
    ]


@pytest.mark.parametrize("markdown", [False, True])
def test_a_table_without_rows_is_its_head_and_a_row_of_another_length_is_refused(markdown):
    assert len(text_table(HEAD, [], markdown).splitlines()) == 2
    with pytest.raises(ValueError):
        text_table(HEAD, [("UNet", 1)], markdown)
