"""The controlled ablation: distillation alone, contrast alone, or both, from one untouched
checkpoint, with what the numbers can bear.
"""
