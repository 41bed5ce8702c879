def test_compiled_as_for_users(passes_alone):
    passes_alone("ops", "--as-for-users")
