"""What this costs, beside what it is held against, measured in one run.

Every benchmark alternates its rows, so that drift of the machine falls on all of
them, and reports ratios within a round. Absolute figures describe one
machine on one day; ratios travel.
"""
