from contract.faults import CODES, tagged, untagged


def test_a_tag_is_read_back_from_within_a_message():
    for code in CODES:
        for gpu in (None, "GPU-6a1b2c3d-0000-1111-2222-333344445555"):
            assert untagged("in ensemble 'wan', " + tagged(code, "it broke", gpu)) == (
                code,
                gpu,
                "in ensemble 'wan', it broke",
            )


def test_what_only_looks_like_a_tag_stays_in_the_message():
    for message in ("[wan:] x", "[wan:unheard_of] x", "WIDTH is 17", "PROMPT is '[wan:x'"):
        assert untagged(message) == (None, None, message)
