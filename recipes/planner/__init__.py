"""The planner: what a config needs of a cluster and how long it takes there, before anything is started.

Read in this order: `architecture` (what the model is made of), `activations` (what the backward pass needs kept), `layouts`
(the ways to spread a model), `memory`, `communication`, `speed` (a layout's bytes, messages and seconds), `workload` (a
config as the planner sees it), `plan` (all layouts, and what to change if none fits), `report` (table and plot).
"""
