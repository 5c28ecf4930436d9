from mmfuse.sources.streams import paired


def at(*times):
    return ((t, f"{t:g}") for t in times)


def test_each_frame_of_the_first_takes_the_nearest_of_the_others():
    found = list(paired({"a": at(0, 1, 2, 3), "b": at(0.1, 0.9, 1.6, 2.05), "c": at(2)}, 0.3))
    assert found == [
        (0, {"a": "0", "b": "0.1"}),
        (1, {"a": "1", "b": "0.9"}),
        (2, {"a": "2", "b": "2.05", "c": "2"}),
        (3, {"a": "3"}),
    ]


def test_a_slow_stream_s_frame_serves_several():
    found = [one.get("b") for _, one in paired({"a": at(0, 1, 2, 3, 4, 5), "b": at(0, 4)}, 1)]
    assert found == ["0", "0", None, "4", "4", "4"]


def test_a_stream_is_read_no_further_than_needed():
    read = []

    def counted():
        for t in range(100):
            read.append(t)
            yield float(t), t

    pairs = paired({"a": at(0, 1), "b": counted()}, 0.5)
    next(pairs)
    assert max(read) <= 1


def test_nothing_pairs_with_nothing():
    assert list(paired({"a": at(), "b": at(1)}, 1)) == []
    assert list(paired({"a": at(1), "b": at()}, 1)) == [(1, {"a": "1"})]
