"""The main job: texts and a teacher in, a model folder and a report out."""
