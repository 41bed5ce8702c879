import string

import numpy as np

from protojax.data import text


def test_alphabet_has_69_different_characters_that_lower_case_leaves_alone():
    assert len(text.ALPHABET) == len(set(text.ALPHABET)) == 69
    assert text.ALPHABET == text.ALPHABET.lower()
    # Letters, digits, space and all punctuation of ASCII: 26 + 10 + 1 + 32.
    assert set(text.ALPHABET) == set(string.ascii_lowercase + string.digits + string.punctuation + " ")


def test_codes_are_1_to_69_then_unknown_and_padding():
    codes = text.encode(text.ALPHABET + "é\n世\U0001f600", 80)
    assert codes.dtype == np.uint8
    np.testing.assert_array_equal(codes, [*range(1, 70), 70, 70, 70, 70, *[0] * 7])


def test_upper_case_reads_as_lower_case():
    np.testing.assert_array_equal(text.encode("AbZ", 3), [1, 2, 26])


def test_long_texts_keep_their_beginning():
    np.testing.assert_array_equal(text.encode("abcdef", 4), [1, 2, 3, 4])


def test_boundary_between_ascii_and_beyond_is_unknown_on_both_sides():
    np.testing.assert_array_equal(text.encode("\x7f\x80\x00", 3), [70, 70, 70])


def test_count_of_truncated_padded_and_unknown():
    texts = ["abcd", "abcde", "ab", "", "a\né", "abcdé"]
    # The é of the last text is cut off.
    assert text.count(texts, 4) == {"truncated": 2, "padded": 3, "unknown": 2}


def test_length_is_counted_in_lower_case():
    assert len("İ".lower()) == 2
    assert text.count(["İ"], 1)["truncated"] == 1
    np.testing.assert_array_equal(text.encode("İ", 2), [9, 70])


def test_encoded_follows_its_texts():
    encoded = text.Encoded(["ab", "c"], 3)
    assert len(encoded) == 2
    np.testing.assert_array_equal(encoded[1], [3, 0, 0])
