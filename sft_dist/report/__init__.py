"""Files of a run folder -> report.html, the table at the end of a run, a comparison of runs. Reads nothing else.

run_files    reads the files of a run folder and says which are missing; run_summary computes from them
run          the page of one run, from sections in results and training
compare      several runs side by side; sweep: the leaderboard of a sweep
card         the dataset card
watch        the line that follows a run in a terminal
html         pages; charts: drawings in SVG; formatting: numbers as text

A run that crashed or still runs gets a page too.
"""
