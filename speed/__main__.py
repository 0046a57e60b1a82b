"""``python -m speed``: see ``speed.run``, imported late, since decoding processes import this file again."""

if __name__ == "__main__":
    from .run import main

    main()
