package doctest

func closeWorkshop() {}
