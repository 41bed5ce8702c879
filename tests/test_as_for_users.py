def test_compiled_as_for_users(passes_alone):
    passes_alone("as_for_users", "--as-for-users")
