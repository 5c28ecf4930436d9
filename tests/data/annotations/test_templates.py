import pytest

from mmfuse.data.annotations.templates import fill, matcher, placeholders, wildcard
from mmfuse.errors import UserError


def test_a_template_is_filled_matched_and_searched():
    template = "{folder}/set{set:2}/{id}_[ir]{{1}}.png"
    assert placeholders(template) == {"folder": None, "set": 2, "id": None}
    text = fill(template, {"folder": "train", "set": "03", "id": "a.b"})
    assert text == "train/set03/a.b_[ir]{1}.png"
    assert matcher(template, {"folder": "train"}, {}).fullmatch(text).groupdict() == {"set": "03", "id": "a.b"}
    assert wildcard(template, {"folder": "t*"}) == "t[*]/set*/*_[[]ir]{1}.png"


def test_a_placeholder_holds_no_slash_keeps_its_length_and_means_the_same_everywhere():
    assert not matcher("{id}.png", {}, {}).fullmatch("a/b.png")
    assert not matcher("{id:2}.png", {}, {}).fullmatch("abc.png")
    assert matcher("{scene}{frame}", {}, {"scene": 2}).fullmatch("010203").groupdict() == {
        "scene": "01",
        "frame": "0203",
    }
    assert matcher("{a}/{a}.png", {}, {}).fullmatch("x/x.png")
    assert not matcher("{a}/{a}.png", {}, {}).fullmatch("x/y.png")
    assert wildcard("{scene}{frame}.jpg", {}) == "*.jpg"


@pytest.mark.parametrize("template", ["{id", "{}", "{id.__class__}", "{0}", "{id!r}", "{id:>2}", "{Id}"])
def test_what_is_no_template_is_named(template):
    with pytest.raises(UserError) as raised:
        placeholders(template)
    assert repr(template) in str(raised.value)
    assert "such as {id}" in str(raised.value)


def test_placeholders_that_run_into_each_other_are_few():
    for template in ("{a}{b}{c}{d}", "{a}/{b}/{c}/{d}/{e}/{f}", "{a:2}{b:2}{c:2}{d:2}{e:2}{f}", "{a}{b}/{a}{b}{a}{b}"):
        assert placeholders(template)
    with pytest.raises(UserError, match=r"too many placeholders in one name .* such as \{id:6\}"):
        placeholders("{a}{b}x{c}_{d}-{e}")
