"""Training on pairs: DPO, ORPO and reward models differ in their objective and share the rest."""
